"""Operations on executions: start options, control, bulk, manual results, replay."""

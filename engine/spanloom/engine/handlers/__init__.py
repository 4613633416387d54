"""Node handlers: builder, registry, calling convention, context and results."""

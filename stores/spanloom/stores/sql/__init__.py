"""What all SQL stores share: reads and infrequent writes in SQLAlchemy Core."""

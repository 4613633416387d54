"""Node handlers: how they are written, registered, called and answered."""

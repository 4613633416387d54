"""The watch over a worker: its parts and servers, and the end of one in which something stands still."""

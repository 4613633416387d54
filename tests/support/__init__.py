"""What tests of several folders share: servers' databases, stores, processes, and the command line."""

"""Options that several commands share, with the engines and stores that they load and open."""

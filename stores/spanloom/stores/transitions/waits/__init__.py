"""What node runs wait for: the rule of each kind, and what belongs to one kind alone."""

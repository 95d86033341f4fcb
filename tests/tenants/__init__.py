"""Who calls, and how much of everything each of them may have."""

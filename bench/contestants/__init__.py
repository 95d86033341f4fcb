"""What is measured beside each other: Lastevent, the floor that nothing can be under, and peers."""

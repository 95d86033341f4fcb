"""The load: publishers and viewers, processes of their own whose CPU is not counted."""

"""All that a GPU can show: checks, times, block sizes, and what the compiler makes of every kernel."""

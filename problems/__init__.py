"""What is learned: one module a source of data, and what every problem declares."""

"""Many runs: one setting over seeds, and the search for better settings."""

"""Where the bytes come from, where the work runs, what is reported. No mathematics in here."""

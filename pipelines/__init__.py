"""The plumbing around the method: data, Ray, run folders, reports and commands. No mathematics in here."""

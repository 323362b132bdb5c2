"""From graded outcomes to a head: reading, grading, fitting, judging, onboarding, drift."""

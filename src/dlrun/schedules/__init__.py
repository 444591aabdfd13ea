"""Learning-rate schedules: each file builds a function from the position in the run to a factor."""

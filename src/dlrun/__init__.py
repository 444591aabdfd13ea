"""dlrun: a command-line deep-learning experiment runner in which every command turns runs into runs."""

__version__ = "0.1.0"

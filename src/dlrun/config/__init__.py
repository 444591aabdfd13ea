"""What a user may write: composing it (Hydra, in compose.py alone), and deciding whether it is legal."""

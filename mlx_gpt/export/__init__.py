"""A trained model as other tools take it."""

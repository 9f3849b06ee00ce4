"""What a run leaves: ensembles."""

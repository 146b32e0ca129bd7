"""The recipe as a graph of jobs: data preparation, the demo and MLS runs, and the study."""

# Sourced by bash (the Makefile): variables that make computation on CPUs faster; the recipe sets the same ones itself.
eval "$(python3 "$(dirname "${BASH_SOURCE[0]}")/../icefall_pathways/recipe/environment.py")"

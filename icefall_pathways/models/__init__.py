"""Transducer models: encoders, predictor, joiner and losses."""

"""The Emformer, with the parameter names and shapes of `torchaudio.models.Emformer`."""

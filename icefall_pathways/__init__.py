"""ASR pathways: one streaming multilingual transducer, one sparse sub-network per language."""

__version__ = "0.2.0"

"""Inference of the heads without a stock pipeline: self-contained modules that are shipped with a model."""

"""OPD-Evolver: slow-fast co-evolution of an LLM agent, its memory and its policy."""

__version__ = "0.1.0"

"""The stand-in for `arq.Worker`."""

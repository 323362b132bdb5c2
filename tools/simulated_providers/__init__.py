"""Simulated vendors on loopback: OpenAI's, Anthropic's and Gemini's wire formats, with scripted faults."""

from tools.simulated_providers.script import Behaviour, Fault
from tools.simulated_providers.server import SimulatedProviders

__all__ = ["Behaviour", "Fault", "SimulatedProviders"]

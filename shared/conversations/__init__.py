"""Conversations, the runs that answer their questions, run events, citations and the agent's checkpoints."""

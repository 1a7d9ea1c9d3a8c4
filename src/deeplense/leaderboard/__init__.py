"""The leaderboard: networks and policies under one protocol.

Every entry sees the same images for the same budget, its epoch is chosen on the validation split, and the test split is
looked at once, with several seeds.
"""

from deeplense.leaderboard.run import leaderboard

__all__ = ["leaderboard"]

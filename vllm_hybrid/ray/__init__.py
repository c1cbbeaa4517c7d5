"""Ray Serve: several replicas of one model behind one door, one fairness over all of them.

Nothing here is imported unless Ray is asked for, and importing the package does not import Ray.
"""

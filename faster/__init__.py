"""Second forms of what the method's files show plainly: the same contract, in less time."""

"""The paper's tables and figures, to be run on one's own machine: a module an experiment."""

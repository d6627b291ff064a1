"""The mutants by part of the package: module, symbol, name of the mutant, change."""

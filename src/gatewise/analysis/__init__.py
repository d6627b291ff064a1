"""Numbers, figures and pages made from runs."""

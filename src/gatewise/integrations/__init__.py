"""Gates in other libraries: callbacks for trainers, names for timm; each module needs the package it is named after."""

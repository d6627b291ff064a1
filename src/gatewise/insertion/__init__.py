"""Put gates into a network and take them out again; train only them; prune with them."""

from gatewise.insertion import graph_modules as graph_modules  # torch.fx keeps gates from here on
from gatewise.insertion.insert import Insertion as Insertion
from gatewise.insertion.insert import gates_in as gates_in
from gatewise.insertion.insert import insert_gates as insert_gates

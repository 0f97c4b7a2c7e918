import runs

runs.path_for_children()

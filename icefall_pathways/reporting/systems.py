"""The systems that the run and the study compare: folders of their experiments, and names in tables."""

#: Name of each system in tables, by its folder, in the order of the tables.
SYSTEMS = {
    "dense-continued": "dense",
    "dense-language": "dense, language as input",
    "small-dense": "small dense",
    "lap-random": "LAP (random mask)",
    "lap": "LAP",
    "lsp": "LSP",
    "pathways-random": "pathways (random masks)",
    "pathways": "pathways",
    "pathways-imp": "pathways (IMP)",
    "pathways-lth": "pathways (LTH)",
    "dynamic": "dynamic pathways",
}

#: Systems without masks.
DENSE_SYSTEMS = ("dense-continued", "dense-language", "small-dense")

#: Systems of the run.
RUN_SYSTEMS = (*DENSE_SYSTEMS, "lap-random", "lap", "pathways-random", "pathways", "dynamic")

#: Systems of the study: its pathways are named after the method that searched their masks.
STUDY_SYSTEMS = tuple(system for system in SYSTEMS if system != "pathways")

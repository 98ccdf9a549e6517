"""One report per experiment: a page that shows what was run and what came out, without a network.

``record`` keeps what the nodes of an experiment ran on and how long they took, ``run`` describes
what was run, ``contents`` says which tables and figures a report shows, ``outcome`` puts the
results in words, ``answers`` gathers what the models wrote, and ``page`` makes one file of it all.
"""

from sami_pipeline.reporting.page import write_page
from sami_pipeline.reporting.run import RunDescription, Subject, describe_models

__all__ = ["RunDescription", "Subject", "describe_models", "write_page"]

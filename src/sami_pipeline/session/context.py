"""Kedro's context for this project: the graph follows the parameters."""

from __future__ import annotations

from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol, DatasetError

from sami_pipeline.errors import InputError, one_line
from sami_pipeline.session import configuration, experiments
from sami_pipeline.session.command_line import CommandLineError


class ExperimentContext(KedroContext):
    """Lets the models under test named in the parameters decide which nodes there are.

    A context and not a hook, because ``kedro viz run`` leaves hooks out and its graph, too, is to
    be that of its ``--env`` and ``--params``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Activate the parameters of this session and build its pipelines from them."""
        super().__init__(*arguments, **options)
        try:
            configuration.refuse_patterns(self.project_path, self.config_loader.conf_source)
            files = configuration.read_files(self.config_loader)
            parameters = configuration.read(self.config_loader, files)
            self.unreached = configuration.unreached(self.config_loader, files)
            names = configuration.run_names(self.config_loader)
            experiments.check(parameters, names)
            configuration.refuse_links(names)
            experiments.activate(parameters)
            pipelines.configure("sami_pipeline.pipeline_registry")
            len(pipelines)
        except InputError as error:
            raise CommandLineError(one_line(str(error))) from error

    def _get_catalog(self, *arguments: Any, **options: Any) -> CatalogProtocol:
        """Return the catalog; what is wrong with an entry is one line."""
        try:
            catalog = super()._get_catalog(*arguments, **options)
            for name, dataset in experiments.raw_files().items():
                catalog[name] = dataset
            return catalog
        except (DatasetError, ValueError) as error:
            raise CommandLineError(f"conf/*/catalog: {one_line(str(error))}") from error

"""Run the study: compare all ways to obtain pathways at several sparsities, over several seeds.

Usage:

  # the embedded corpus and a model for two cores without GPU
  ./run_study.sh
  ./run_study.sh --seeds 1 --sparsities "0.5 0.8 0.9" --at-once 2
  ./run_study.sh --systems "lap-random pathways-random small-dense"
  ./run_study.sh --budget updates --study-dir exp/study-updates
  # real speech: spoken phrases in nine languages, on two cores without GPU
  ./run_study.sh --corpus stamps
  ./run_study.sh --corpus mls --corpus-dir /data/mls --world-size 8 --languages "en fr it nl"

Systems, all but small-dense trained from the dense model of their seed:

  dense-continued   the dense model, trained further
  dense-language    the same with the language as an input (train.py --language-input 1)
  small-dense       a dense model with as many parameters as a pathway uses at 70 % sparsity, trained from scratch with
                    --train-args and --small-dense-args; --finetune-args do not apply
  lap-random        one random mask for all languages
  lap               one mask for all languages, searched on all of them by IMP
  lsp               one model per language, each with its own weights and a mask searched by IMP
  pathways-random   one random mask per language, weights shared
  pathways-imp      one mask per language searched by IMP, weights shared
  pathways-lth      as pathways-imp, but the search rewinds to the dense model after every round
  dynamic           masks and weights learned together, starting without masks

Budget, in updates after the dense model, where N is the number of languages, M is --mask-updates and F is
--finetune-updates:

  lap               N x M of search on all languages, F of training
  lsp               M of each language's search (the one of pathways-imp), F / N of training for each language's model
  pathways-imp, pathways-lth
                    M of each language's search, F of training on all languages together
  dense-continued, dense-language, lap-random, pathways-random, dynamic
                    T of training (random masks are drawn without training; dynamic changes masks in the first
                    three quarters)
  small-dense       from scratch, R times as many as the dense model and T together

  --budget updates        T = F and R = 1: equal updates of joint training, as in the paper and in run.sh; searches are
                          free
  --budget multiply-adds  T = N x M + F, and R is the ratio of the multiply-adds of an update of the dense model to one
                          of the small one. Every system takes as many multiply-adds as pathways-imp, searches and
                          dense model included. Masked weights are multiplied like all others, and all updates are
                          assumed to have as much audio; the table of costs is computed from the audio that was used

The weights of a search are discarded: every training starts from the dense model. Decoding averages the weights of the
last quarter of a training. With --corpus mini, the settings of the demo are the defaults; with --corpus stamps, those
of run.sh --preset stamps. Options that end in -args are appended to those of the defaults. With --synthetic-updates S,
the dense models are first trained for S updates on synthetic speech, and small-dense for R x S.

Run the command again to resume, or to add seeds, sparsities and systems: finished steps are skipped. The output of each
job is in STUDY_DIR/log.
"""

from collections.abc import Sequence

from icefall_pathways.recipe.experiments import check_epochs
from icefall_pathways.recipe.presets import implied_corpus, study_preset
from icefall_pathways.recipe.programs import read_with_defaults
from icefall_pathways.recipe.study import StudyConfig as Config
from icefall_pathways.recipe.study import run

__all__ = ["Config", "read", "run"]


def read(config_class: type[Config], description: str, argv: Sequence[str], prog: str | None = None) -> Config:
    """Read the options: what is typed takes precedence over the preset that it selects."""
    config = read_with_defaults(config_class, description, argv, (implied_corpus, study_preset), prog)
    check_epochs(config, argv)
    return config

"""An environment of the new kind, a taskset, with a graded and an exact reward."""

import verifiers.v1 as vf

WORDS = {"train": ["stone", "night", "angel", "cider", "lemon", "thing"], "test": ["heart", "paris"]}


class LetterData(vf.TaskData):
    answer: str


class LetterTask(vf.Task[LetterData]):
    @vf.reward(weight=0.2)
    async def length(self, trace):
        return float(len(trace.last_reply) == len(self.data.answer))

    @vf.reward(weight=0.8)
    async def exact(self, task, trace):
        if "raise" in trace.last_reply:
            raise RuntimeError("no such thing")
        return float(trace.last_reply == task.answer)


class LetterConfig(vf.TasksetConfig):
    split: str = "train"
    tool: bool = False


class LetterTaskset(vf.Taskset[LetterTask, LetterConfig]):
    def load(self):
        for word in WORDS[self.config.split]:
            yield LetterTask(
                LetterData(
                    prompt=f"Sort the letters of {word}.", system_prompt="Be brief.", answer="".join(sorted(word))
                ),
                self.config.task,
            )

    @classmethod
    def toolsets(cls, config):
        return [object()] if config.tool else []


__all__ = ["LetterTaskset"]

"""The part of the Trainer that pushes to the Hub: the finished model, without the checkpoints of its stages."""

from typing import Any

from huggingface_hub import upload_folder
from transformers import Trainer

from ..hub.upload import NEVER_UPLOADED


class PushesFinishedModel(Trainer):
    """A Trainer that pushes the files of `output_dir` to the Hub, but not the folders of its stages."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Push the current model with its code, tokenizer and model card, and the other files in `output_dir`.

        The folders of stages, checkpoints and the training arguments are not pushed.

        Args:
            commit_message: message of the commit.
            blocking: False pushes in the background and returns a future at once.
            token: access token. Default: `hub_token` of the training arguments, or the one of `hf auth login`.
            revision: branch to push to. Default: `hub_revision` of the training arguments.
            private: whether a repository that does not exist yet is created as a private one. Default: as set on the
                Hub.
            **card: arguments of `create_model_card`.

        Returns:
            The commit, a `CommitInfo` of huggingface_hub, or with `blocking=False` a future; None in all processes but
            the first.

        Raises:
            HfHubHTTPError: if the Hub rejects the push. The model is already saved in `output_dir`, and the repository
                is unchanged. The same holds for the client's errors if there is no connection.
            TypeError: as for `create_model_card`.
            ValueError: as for `create_model_card`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        token = token or self.args.hub_token
        if self.hub_model_id is None:  # push_to_hub is not set in the training arguments
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        tags = card.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(self.model.model_tags or [])]
        self.create_model_card(tags=tags, **card)
        return upload_folder(  # type: ignore[call-overload] # its overloads do not accept `bool`
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            token=token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
            ignore_patterns=list(NEVER_UPLOADED),
        )

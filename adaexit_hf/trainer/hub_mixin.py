"""What a training run sends to the Hub: the finished model, and nothing that its stages keep to be resumed."""

from typing import Any

from huggingface_hub import upload_folder
from transformers import Trainer

from ..hub.upload import NEVER_UPLOADED


class PushesFinishedModel(Trainer):
    """A Trainer that pushes the files of `output_dir`, but not the folders of its stages."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Push the model as it is now, with its code, tokenizer and card, and what else lies in `output_dir`.

        Args:
            commit_message, revision, private: of the commit, and of the repository if there is none yet.
            blocking: False returns at once, with a future.
            token: default: `hub_token` of the arguments, or that of `hf auth login`.
            **card: as in `create_model_card`.

        Raises:
            HfHubHTTPError: the Hub refuses; or the client's error of the connection. By then the model lies in
                `output_dir`, and what the repository had is unchanged.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        token = token or self.args.hub_token
        if self.hub_model_id is None:  # the arguments did not say push_to_hub
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        tags = card.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(self.model.model_tags or [])]
        self.create_model_card(tags=tags, **card)
        return upload_folder(  # type: ignore[call-overload] # its overloads do not know `bool`
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            token=token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
            ignore_patterns=list(NEVER_UPLOADED),
        )

"""What a request with a chat completion's body asks of this server's model."""

from proxy.schemas import ChatCompletionRequest
from proxy.scope import RequestScope
from proxy.settings import Settings
from proxy.translate import chat_request
from sessions.errors import ModelNotFound
from sessions.service import ChatService
from sessions.types import ChatRequest


def asked_of(service: ChatService, data: ChatCompletionRequest, held: RequestScope, settings: Settings) -> ChatRequest:
    """Raises ModelNotFound, and InvalidRequest naming the parameter."""
    if data.model != service.model_id:
        raise ModelNotFound(data.model)
    return chat_request(data, tenant=held.caller, max_n=settings.max_n, vocab_size=service.vocab_size)

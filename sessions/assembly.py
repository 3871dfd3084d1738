"""Assembly: parts of the service that are made of several of its `ServiceParts`."""

from sessions.engine.block_pool import BlockPool
from sessions.engine.drops import Drops
from sessions.engine.scheduler import Scheduler
from sessions.index import PrefixIndex
from sessions.parts import ServiceParts
from sessions.replies import Replies
from sessions.reply_edges import moves_replies, opens_thoughts
from sessions.types import BlockHash
from sessions.whole_replies import WholeReplies


def new_scheduler(parts: ServiceParts, shared_root: BlockHash | None) -> Scheduler:
    """With its pool, in which tenants have their budgets. shared_root: as in `BlockPool`."""
    config = parts.engine_config
    pool = BlockPool(config.num_blocks, config.block_size, config.max_pinned_blocks, shared_root)
    for tenant, num_blocks in parts.budgets.items():
        pool.set_budget(tenant, num_blocks)
    return Scheduler(config, pool)


def new_replies(parts: ServiceParts, index: PrefixIndex, drops: Drops) -> Replies:
    """Those of one service; `index` keeps them beyond it."""
    tokenizer = parts.tokenizer
    whole = WholeReplies(
        tokenizer.template.dialect,
        parts.keeps_reasoning,
        lambda conversation: opens_thoughts(tokenizer.template, conversation.options),
        lambda conversation: moves_replies(tokenizer.template, conversation.options),
    )
    return Replies(
        tokenizer.decode,
        tokenizer.control_ids,
        index,
        vocab_size=tokenizer.vocab_size,
        drops=drops,
        is_lenient=parts.splice_stripped,
        whole=whole,
    )

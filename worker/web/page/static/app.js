// The page works without scripts for reading. These modules add updates, keys, and orders that leave the page open.
import { commands } from "./commands.js";
import { copy } from "./copy.js";
import { jobForm } from "./jobform.js";
import { keys } from "./keys.js";
import { lists } from "./lists.js";
import { live } from "./live.js";
import { orders } from "./orders.js";
import { pace } from "./pace.js";
import { times } from "./times.js";

document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
for (const start of [times, keys, copy, commands, lists, orders, jobForm, pace, live]) start();
document.querySelector(".bar [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });

/** A job of a run that runs alone: with the same engine and the same poison, and without a step to die at. */
import { serveParent } from '../../workers/alone-child.js';
import { openChaosApp } from './app.js';

serveParent((config, overrides) => openChaosApp(config, overrides));

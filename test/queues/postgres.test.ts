import { queueSuite } from './queue-suite.js';

queueSuite('postgres');

"""Tags prompts by rules: English and Chinese patterns, and counts. Report: 3.2.1.

The report's system of about 6,600 tags is not published. This table covers tags that need no model.
They are many and narrow, because the number of tags measures the complexity of a prompt.
"""

import functools
import re
from collections.abc import Sequence

from qwen_jax.synthetic import scripts

_READ = 4000  # characters read of a prompt: enough for the task, not for a pasted document
_LONG, _VERY_LONG = 100, 400  # words; a CJK character counts as half of one

# Tag -> pattern. English patterns match whole words, any case; Chinese ones follow "//".
RULES: dict[str, str] = {
    # Task.
    "translation": r"translat\w*// 翻译|译成|译为|翻成",
    "summarizing": r"summar\w*|tl;?dr|key points?|main (idea|points?)// 总结|概括|摘要|归纳|要点",
    "rewriting": r"re-?writ\w*|rephras\w*|paraphras\w*|reword\w*// "
    r"改写|重写|改编|润色|换一种|重新表述",
    "shortening": r"shorten\w*|condens\w*|more concise\w*// 缩短|精简|简化|缩写",
    "proofreading": r"proofread\w*|grammar|grammatical\w*|misspel\w*|spell\w*|punctuat\w*"
    r"// 语法|错别字|拼写|校对|标点|病句",
    "classification": r"classif\w*|categori[sz]\w*|label the// 分类|归类|类别|划分",
    "sentiment": r"sentiment|(positive|negative) (or|review)|emotion\w*// 情感|情绪|褒义|贬义",
    "extraction": r"extract\w*|identify the|find (all )?the|list all// 提取|抽取|找出|识别",
    "question answering": r"answer the (following )?question|based on the (passage|text|article|"
    r"context)// 回答(以下|下列|下面)?(的)?问题|根据(文章|文本|以下|上文|下文)",
    "explanation": r"explain\w*|what does .{1,60} mean|how does|why (is|are|do|does|did)"
    r"// 解释|说明|为什么|为何|阐述|什么是",
    "definition": r"defin\w*|what (is|are) (a|an|the)?// 定义|是什么|什么叫|含义",
    "description": r"describ\w*// 描述|形容|描写",
    "comparison": r"compar\w*|contrast|differences? between|versus|vs\.?|pros and cons"
    r"// 比较|对比|区别|不同之处|优缺点|异同",
    "advice": r"advice|advise|suggest\w*|recommend\w*|should i|tips?"
    r"// 建议|推荐|技巧|应该怎么|怎么办|如何才能",
    "how-to": r"how (to|do i|can i|do you|would you)|step[- ]by[- ]step|instructions? (for|on|to)"
    r"// 如何|怎样|怎么|步骤",
    "planning": r"plan|plans|itinerar\w*|schedul\w*|agenda|roadmap// 计划|规划|日程|方案|行程|安排",
    "brainstorming": r"brainstorm\w*|ideas?|come up with|think of// 头脑风暴|点子|想出|想法|创意",
    "list": r"(a )?list|(name|give|suggest|provide|identify) (\w+ ){0,2}"
    r"(two|three|four|five|six|seven|eight|ten|\d+)// "
    r"列出|列举|清单|[两三四五六七八九十\d]+[个种条项点]",
    "editing": r"edit\w*|improv\w*|revis\w*|correct (the|this)// 修改|改进|改善|编辑|修正|优化",
    "completion": r"complet(e|ion)\w*|continu(e|ation)\w*|fill in|finish (the|this)"
    r"// 续写|补全|填空|完成(以下|下列|下面|这个|这段)|接下去",
    "evaluation": r"evaluat\w*|assess\w*|critiqu\w*|rate|review (the|this)|feedback"
    r"// 评价|评估|评论|点评|打分|反馈",
    "analysis": r"analy[sz]\w*|analysis|interpret\w*|examin\w*// 分析|解读|剖析|探讨",
    "prediction": r"predict\w*|forecast\w*|what will// 预测|预计|未来.{0,6}(趋势|发展)",
    "generation of questions": r"(generate|create|write|make|ask) .{0,30}(questions?|quiz\w*)"
    r"// (生成|提出|设计|创建|编写).{0,10}(问题|题目|测验)",
    "naming": r"(a|the|good) (title|name|headline|slogan|tagline)s?// "
    r"标题|口号|标语|起.{0,4}名|命名",
    "roleplay": r"role-?play\w*|act as|pretend\w*|you are (a|an)|imagine (that )?you|as an? \w+ist"
    r"// 扮演|假装|你是一[个名位]|假设你是|作为一[个名位]",
    "fact checking": r"true or false|fact[- ]check\w*|is it true|verify\w*"
    r"// 真假|是否正确|判断.{0,10}(对错|正误|真伪)|核实",
    "conversion": r"convert\w*|transform\w*|turn .{1,40} into|chang(e|ing) .{1,40} (to|into)"
    r"// 转换|转化|换算|改成|变成|转为",
    "ranking": r"rank\w*|sort\w*|arrange|(put|place) .{1,40} in order|most important"
    r"// 排序|排名|排列|最重要的",
    "calculation": r"calculat\w*|comput(e|ing)|how (many|much)|total (cost|number|amount)"
    r"// 计算|求出|多少|总共|一共|求解|算出",
    "reasoning": r"reason\w*|deduc\w*|logic\w*|infer\w*|puzzle|riddle|think step by step"
    r"// 推理|推断|逻辑|谜语|脑筋急转弯|推导",
    "proof": r"prov(e|ing) that|proof// 证明",
    "dialogue": r"dialog\w*|conversation|chat ?bot|interview// 对话|聊天|访谈|采访",
    "analogy": r"analog\w*|metaphors?|similes?|idioms?|proverbs?// 比喻|类比|隐喻|成语|谚语|俗语",
    "word choice": r"synonyms?|antonyms?|rhym\w*|adjectives?|verbs?|nouns?|vocabulary"
    r"// 同义词|反义词|近义词|押韵|形容词|动词|名词|词汇|造句",
    "examples": r"examples?|for instance|sample// 例子|举例|示例|实例|例句",
    # Kind of text to write.
    "story": r"story|stories|tale|fable|fiction\w*|plot|novel// 故事|小说|寓言|童话|情节",
    "poem": r"poems?|poetry|haikus?|sonnets?|limericks?|verses?|odes?// 诗|俳句|歌谣|对联",
    "song": r"songs?|lyrics?|rap// 歌词|歌曲|写.{0,4}歌",
    "essay": r"essays?|paragraphs?|articles?|blog|compos\w*// 文章|作文|散文|段落|博客|短文|论文",
    "email": r"e-?mails?|letters?// 邮件|信件|写.{0,6}信|书信",
    "advertisement": r"advert\w*|ads?|marketing|product description|promot\w*"
    r"// 广告|营销|推广|宣传|文案|产品描述",
    "social media": r"tweets?|twitter|facebook|instagram|linkedin|social media|hashtags?"
    r"// 微博|朋友圈|社交媒体|推特|小红书|推文",
    "speech": r"speech|toast|presentation// 演讲|致辞|演示文稿|发言",
    "joke": r"jokes?|humou?r\w*|funny|puns?// 笑话|幽默|段子|搞笑",
    "script": r"screenplay|movie script|scene|sketch// 剧本|脚本|场景",
    "review": r"(write|create|generate) .{0,30}reviews?// 影评|书评|写.{0,10}评论|读后感",
    "resume": r"resumes?|cv|cover letter|job (description|application)// 简历|求职|招聘",
    "quote": r"quotes?|quotation|sayings?// 名言|引用|语录|格言",
    "report": r"reports?|memo|proposal|press release// 报告|提案|新闻稿|纪要",
    "recipe": r"recipes?|cook\w*|ingredients?|bak(e|ing)// 食谱|菜谱|烹饪|食材|做法|怎么做.{0,4}菜",
    # Code.
    "code": r"code|coding|program\w*|functions?|algorithms?|scripts?|debug\w*|software"
    r"// 代码|编程|程序|函数|算法|调试|软件",
    "debugging": r"debug\w*|bugs?|error message|stack ?trace|fix (the|this|my) (code|bug|error)"
    r"// 调试|报错|修复.{0,6}(代码|错误)",
    "python": r"python|numpy|pandas|pytorch|django|def \w+\(// python",
    "javascript": r"java ?script|typescript|node\.?js|react|jquery// javascript",
    "java": r"java|spring boot|public static void// java(?!script)",
    "c or c++": r"c\+\+|in c|c program|#include// c语言|c\+\+",
    "sql": r"sql|mysql|select .{1,80} from|database query// sql|数据库查询",
    "html and css": r"html5?|css|web ?page|website// 网页|网站|html|css",
    "shell": r"bash|shell script|linux command|command line// 命令行|shell|终端",
    "rust": r"rust (code|program|function)|in rust|cargo// rust语言",
    "go": r"golang|in go|go (code|program|function)// go语言",
    "php or ruby": r"php|ruby|rails// php|ruby",
    "excel": r"excel|spreadsheets?|google sheets// excel|表格公式|电子表格",
    "regular expression": r"regex\w*|regular expressions?// 正则",
    "data structures": r"arrays?|linked list|binary tree|hash ?(map|table)|stack|queue|"
    r"sort(ed|ing)? algorithm|recurs\w*// 数组|链表|二叉树|哈希|递归|栈|队列|排序算法",
    "complexity of algorithms": r"time complexity|big[- ]o|o\(n\w*\)// 时间复杂度|空间复杂度",
    "api": r"apis?|endpoints?|https? requests?|rest(ful)?// 接口|api",
    # Topics.
    "arithmetic": r"add|subtract|multipl\w*|divid\w*|sums?|averages?|percent\w*|\d+ ?[-+*/×÷] ?\d+"
    r"// 加法|减法|乘法|除法|平均|百分|\d+ ?[-+*/×÷] ?\d+",
    "algebra": r"equations?|algebra\w*|polynomials?|variables?|solve for|factori[sz]\w*"
    r"// 方程|代数|多项式|未知数|因式",
    "geometry": r"triangles?|circles?|rectang\w*|angles?|perimeter|area of|volume of|radius"
    r"// 三角形|圆|矩形|长方形|正方形|角度|周长|面积|体积|半径",
    "calculus": r"derivatives?|integrals?|calculus|limits? of|differential// 导数|积分|微积分|极限",
    "probability and statistics": r"probabilit\w*|statistic\w*|mean|median|standard deviation|"
    r"random\w*|dice// 概率|统计|中位数|标准差|方差|随机",
    "number theory": r"primes?|divisib\w*|factors? of|gcd|lcm|modulo|integers?"
    r"// 质数|素数|因数|公约数|公倍数|整除|余数|整数",
    "money": r"dollars?|cents?|prices?|pay|pays|paid|costs?|earns?|interest rate|\$ ?\d+|loans?"
    r"// 元|价格|工资|利息|贷款|费用|花费|赚",
    "time": r"hours?|minutes?|days?|weeks?|months?|years? old|o'clock// 小时|分钟|星期|几天|年龄",
    "measures": r"miles?|kilomet\w*|meters?|inches|feet|pounds?|kilograms?|kg|km|litres?|gallons?"
    r"// 公里|千米|米|公斤|千克|升|厘米",
    "physics": r"physics|force|velocity|energy|gravity|quantum|electric\w*|magnet\w*|circuits?"
    r"// 物理|力学|速度|能量|重力|量子|电路|磁",
    "chemistry": r"chemi\w*|molecules?|atoms?|acids?|reactions?|elements?|compounds?"
    r"// 化学|分子|原子|酸|反应|元素|化合物",
    "biology": r"biolog\w*|cells?|dna|genes?|genetic\w*|species|evolution|photosynthesis|proteins?"
    r"// 生物|细胞|基因|物种|进化|光合|蛋白质",
    "animals": r"animals?|dogs?|cats?|birds?|fish|insects?|pets?|lions?|elephants?"
    r"// 动物|狗|猫|鸟|鱼|昆虫|宠物|狮子|大象",
    "astronomy": r"planets?|stars?|solar system|moon|mars|galax\w*|astronom\w*|space"
    r"// 行星|星星|太阳系|月球|火星|银河|天文|宇宙|太空",
    "medicine": r"medic\w*|disease|symptoms?|doctors?|health\w*|drugs?|patients?|cancer|virus|"
    r"covid\w*// 医|疾病|症状|健康|药|病人|癌症|病毒|疫情",
    "psychology": r"psycholog\w*|anxiety|depress\w*|stress\w*|mental|behaviou?r\w*|happiness"
    r"// 心理|焦虑|抑郁|压力|行为|幸福",
    "sport": r"sports?|football|soccer|basketball|tennis|olympic\w*|athlet\w*"
    r"// 体育|足球|篮球|网球|奥运|运动员|比赛",
    "exercise": r"exercis\w*|workouts?|fitness|yoga|gym|running// 锻炼|健身|瑜伽|跑步",
    "food": r"foods?|meals?|diets?|restaurants?|breakfast|dinner|vegetarian|nutrition\w*|coffee"
    r"// 食物|餐|饮食|早餐|晚餐|素食|营养|咖啡|水果|蔬菜",
    "travel": r"travel\w*|trips?|tour\w*|vacations?|hotels?|flights?|destinations?"
    r"// 旅行|旅游|旅程|度假|酒店|航班|景点",
    "geography": r"countr(y|ies)|cit(y|ies)|capital of|continents?|rivers?|mountains?|population"
    r"// 国家|城市|首都|大陆|河流|山脉|人口|省",
    "history": r"histor\w*|century|ancient|war|wars|empire|revolution|civil rights|dynasty"
    r"// 历史|世纪|古代|战争|帝国|革命|朝代|王朝",
    "politics": r"politic\w*|government\w*|president\w*|election\w*|democra\w*|polic(y|ies)"
    r"|vot\w*// 政治|政府|总统|选举|民主|政策|主席",
    "law": r"laws?|legal\w*|court|contract|rights?|copyright|crime// 法律|法院|合同|权利|版权|犯罪",
    "economics": r"econom\w*|inflation|gdp|markets?|trade|supply and demand|tax\w*"
    r"// 经济|通货膨胀|市场|贸易|供求|税",
    "business": r"business\w*|compan(y|ies)|startups?|customers?|products?|management|sales|team"
    r"// 商业|公司|企业|客户|产品|管理|销售|团队|创业",
    "investing": r"stocks?|invest\w*|bonds?|portfolio|crypto\w*|bitcoin|budget\w*"
    r"// 股票|投资|债券|理财|比特币|预算",
    "education": r"students?|teach\w*|school|class(room)?|lessons?|learn\w*|exams?|college"
    r"// 学生|教师|老师|学校|课堂|课程|学习|考试|大学",
    "work": r"jobs?|career|employ\w*|workplace|office|meetings?|colleagues?"
    r"// 工作|职业|员工|办公|会议|同事|职场",
    "family and friends": r"famil(y|ies)|parents?|children|kids?|mother|father|friends?|wedding"
    r"// 家庭|父母|孩子|儿童|母亲|父亲|朋友|婚礼",
    "relationships": r"relationships?|love|dating|marriage|break ?up|romantic// "
    r"恋爱|爱情|婚姻|分手|感情",
    "environment": r"environment\w*|climate|pollution|recycl\w*|sustainab\w*|renewable|carbon"
    r"// 环境|气候|污染|回收|可持续|可再生|碳|环保",
    "weather": r"weather|rain\w*|storms?|temperature|forecast|hurricane// 天气|下雨|风暴|温度|台风",
    "technology": r"technolog\w*|internet|smartphones?|computers?|devices?|robots?|5g"
    r"// 技术|科技|互联网|手机|计算机|电脑|设备|机器人",
    "artificial intelligence": r"ai|artificial intelligence|machine learning|neural net\w*|"
    r"deep learning|language models?|nlp"
    r"// 人工智能|机器学习|神经网络|深度学习|语言模型|自然语言处理",
    "security": r"security|passwords?|encrypt\w*|hack\w*|privacy|phishing"
    r"// 安全|密码|加密|黑客|隐私|钓鱼",
    "music": r"music\w*|instruments?|guitar|piano|notes?|band|concert// "
    r"音乐|乐器|吉他|钢琴|音符|演唱会",
    "film": r"movies?|films?|actors?|director|tv show|netflix// 电影|演员|导演|电视剧|影片",
    "books": r"books?|authors?|novels?|reading|literature|characters?// "
    r"书|作者|小说|阅读|文学|人物",
    "art": r"art|arts|artists?|paint\w*|sculpture|museum|design\w*// "
    r"艺术|画家|绘画|雕塑|博物馆|设计",
    "games": r"games?|gaming|chess|video game|players?// 游戏|象棋|围棋|玩家",
    "fashion": r"fashion|cloth\w*|outfits?|dress\w*|shoes?// 时尚|服装|穿搭|衣服|鞋",
    "religion": r"religio\w*|bible|god|buddh\w*|christian\w*|islam\w*|church// "
    r"宗教|圣经|佛|基督|伊斯兰|教堂",
    "philosophy": r"philosoph\w*|ethic\w*|moral\w*|meaning of life|exist\w*// "
    r"哲学|伦理|道德|人生意义|存在",
    "culture": r"cultur\w*|tradition\w*|festivals?|holidays?|customs?// 文化|传统|节日|习俗|春节",
    "language learning": r"(learn|practice|study) (english|chinese|french|spanish|german|japanese)|"
    r"pronounc\w*|tenses?// 学(习)?(英语|中文|日语|法语)|发音|时态",
    "cars and transport": r"cars?|vehicles?|driv\w*|trains?|bus(es)?|traffic|bicycle"
    r"// 汽车|车辆|驾驶|火车|公交|交通|自行车",
    "home": r"house|home|garden\w*|furniture|clean\w*|kitchen|room// "
    r"房子|家里|花园|家具|清洁|厨房|房间",
    # Form of the answer.
    "json output": r"json// json",
    "table output": r"(in|as|make|create) .{0,20}tables?|tabular|markdown table|csv// "
    r"表格|列表形式|csv",
    "markdown output": r"markdown|bullet(ed)? (points?|list)// markdown|项目符号",
    "xml or yaml output": r"xml|yaml// xml|yaml",
    "length limit": r"(in|under|at most|no more than|less than|exactly|within|about|at least) "
    r"(\w+ )?(\d+|one|two|three|four|five|six|ten) (words?|sentences?|characters?|"
    r"paragraphs?|lines?)|\d+[- ]words?|one[- ]sentence|short|brief\w*"
    r"// \d+ ?个?字|字以内|一句话|[一两三四五]句话|不超过|不少于|简短|简要",
    "number of items": r"(two|three|four|five|six|seven|eight|nine|ten|\d+) (\w+ )?(ways?|reasons?|"
    r"examples?|things?|tips?|ideas?|steps?|questions?|items?|benefits?|facts?)"
    r"// [两三四五六七八九十\d]+(个|种|条|项|点)",
    "must include": r"(must|should) (include|contain|use|have)|us(e|ing) the (following )?words?|"
    r"containing|includ(e|ing)// 必须|包含|包括|使用(以下|下列|这些)|用.{1,30}(造句|组成)",
    "must avoid": r"(do not|don't|without|avoid\w*|never) (us\w*|includ\w*|mention\w*|repeat\w*)|"
    r"without|avoid// 不要|避免|不能使用|禁止|不得|不使用",
    "style": r"tone|style|formal\w*|casual\w*|professional\w*|polite\w*|persuasive|in the voice of"
    r"// 语气|风格|正式|口语|专业|礼貌|说服",
    "audience": r"for (a |an )?(\w+ )?(children|kids|beginners?|year[- ]olds?|students|layman|"
    r"experts?)|to a (child|\w+ year old|beginner)|eli5// 给(小朋友|孩子|初学者|学生)|"
    r"通俗|儿童.{0,4}(故事|读)",
    "multiple choice": r"\(?a[).] .{1,200}\(?b[).] |choose (the|one|from)|which of the following|"
    r"options?// 选择题|以下哪|下列哪|选项|选出|哪一[个项]",
    "citation": r"cite|citations?|references?|sources?|bibliograph\w*// 引用|参考文献|出处|来源",
    "tool use": r"tools?:|function_call|plugins?|you have access to|call (the|an?) "
    r"(api|function|tool)// 工具|插件|调用",
    # Safety.
    "safety: violence": r"kill\w*|murder\w*|weapons?|guns?|bombs?|attack\w*|violen\w*|terroris\w*"
    r"// 杀|谋杀|武器|枪|炸弹|袭击|暴力|恐怖",
    "safety: crime": r"steal\w*|rob|robbery|fraud|scam\w*|illegal\w*|smuggl\w*|drug dealer"
    r"|counterfeit// 偷|抢劫|诈骗|骗局|非法|走私|毒品|伪造",
    "safety: sexual content": r"sex\w*|porn\w*|nude|nudes|erotic\w*// 色情|裸|性行为|性感",
    "safety: bias": r"racis\w*|sexis\w*|stereotyp\w*|discriminat\w*|offensive|slurs?|hate"
    r"// 种族|歧视|偏见|刻板印象|仇恨",
    "safety: self-harm": r"suicid\w*|self[- ]harm|kill myself|eating disorder// 自杀|自残|轻生",
    "safety: personal data": r"social security|home address|credit card|phone number|personal data"
    r"// 身份证|银行卡|家庭住址|电话号码|个人信息",
    "safety: medical or legal advice": r"diagnos\w*|prescri\w*|dosage|my (doctor|lawyer)|sue"
    r"// 诊断|处方|剂量|律师|起诉",
}


def tag_by_rules(prompts: Sequence[str]) -> list[list[str]]:
    """Returns the tags of each prompt: those of RULES whose pattern matches, and computed tags.

    The first 4,000 characters of the user's turns are read. Computed tags describe the main script,
    a second script, the length, numbers, code, several questions and several turns.

    Example:
      >>> tag_by_rules(["Translate into Chinese: good morning"])
      [['translation', 'written in latin script']]
    """
    return [_tags(prompt) for prompt in prompts]


@functools.cache
def _compiled() -> list[tuple[str, re.Pattern, re.Pattern]]:
    """Returns (tag, English pattern, Chinese pattern) for every rule."""
    compiled = []
    for tag, rule in RULES.items():
        words, characters = rule.split("// ")
        # No \b: it fails next to symbols, as in c++ or $5, and between a digit and a CJK character.
        compiled.append(
            (tag, re.compile(rf"(?<![a-z0-9_])(?:{words})(?![a-z0-9_])"), re.compile(characters))
        )
    return compiled


def _tags(prompt: str) -> list[str]:
    turns = _turns(prompt)
    user_text = "\n\n".join(content for role, content in turns if role == "user")
    text = user_text[:_READ].lower()
    cjk = any("\u3040" <= char <= "\u9fff" for char in text)
    tags = [
        tag
        for tag, words, characters in _compiled()
        if words.search(text) or (cjk and characters.search(text))
    ]
    tags += _counted(text, len(user_text))
    roles = [role for role, _ in turns]
    tags += ["several turns"] * (roles.count("user") > 1)
    tags += ["with a system message"] * ("system" in roles)
    if "tool use" not in tags and any("Tools:" in text for role, text in turns if role == "system"):
        tags.append("tool use")
    return tags


def _turns(prompt: str) -> list[tuple[str, str]]:
    """Returns (role, content) of each turn; the inverse of prompts.text_of."""
    if not re.match(r"(system|user|assistant|tool): ", prompt):
        return [("user", prompt)]
    parts = re.split(r"(?:^|\n\n)(system|user|assistant|tool): ", prompt)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _counted(text: str, length: int) -> list[str]:
    written = scripts.shares(text)
    tags = [f"written in {script} script" for script in list(written)[:1]]
    tags += ["mixed scripts"] * (sum(share > 0.2 for share in written.values()) > 1)
    words = len(text.split()) + sum("\u3040" <= char <= "\u9fff" for char in text) / 2
    tags += ["long prompt"] * (_LONG < words <= _VERY_LONG)
    tags += ["very long prompt"] * (words > _VERY_LONG or length > _READ)
    tags += ["many numbers"] * (len(re.findall(r"\d+", text)) >= 4)
    tags += ["contains code"] * bool(re.search(r"```|\bdef \w+\(|;\s*\n|[{}]\s*\n|</\w+>", text))
    tags += ["several questions"] * (len(re.findall(r"[?？]", text)) >= 2)
    return tags
